"""The books: accounts, journal, and the transactions that change them."""
