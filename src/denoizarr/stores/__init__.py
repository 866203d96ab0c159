"""The only package that touches bytes: locations, images, records and foreign files."""
