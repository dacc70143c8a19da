"""Finds what an id is about: an order, a letter, a product, a server, an account, or anything else that has a page."""
