"""Mathematics and bookkeeping of privacy: plan, accounting, noise, sampling, private training, the ledger, audits.

Imports nothing of ours and no Flower, so it can be read and checked on its own.
"""
