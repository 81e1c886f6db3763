"""A whole federation on one machine; the one part that knows owners and server both."""
