"""What Fiji, bioimageio.core and the Zoo will say of a package."""
