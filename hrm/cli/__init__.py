"""The command line. The only place that knows every part; it imports them inside functions, so that help is instant."""
