"""The version of the distribution; read by the build backend, so that it needs no installation."""

__version__ = "0.1.0"
