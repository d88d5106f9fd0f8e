"""What the gateway knows and keeps: the domain tables, the spool of bytes, and the tickets that carry the work."""
