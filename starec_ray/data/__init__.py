"""Published files → Arrow tables → cases."""
