"""Jobs that are run again and again: what may start, what schedulers are told, and one of our own."""
