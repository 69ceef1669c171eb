"""The demonstration: one cache object's whole life against a running server, timed and paid for.

target    the server: a running one, or one of our own
client    the calls, with the standard library alone, so that what is timed is the server
costs     what each step cost: from the ledger's entries, or from the balance
journey   the steps in their order
report    the table
"""
