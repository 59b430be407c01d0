"""Jobs: predictions that outlive their requests, and the processes that compute them."""
