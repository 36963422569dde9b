"""A server for translation: interface, scheduler, worker processes, metrics, the page."""
