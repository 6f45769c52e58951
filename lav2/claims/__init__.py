"""The papers' claims as experiments: ``python -m lav2.claims`` runs their arms and writes a page of verdicts.

A claim is a file in ``conf/experiment/claims/``: what the paper says, the arms that test it, and which arm must do
better than which. What a verdict needs is fixed in :mod:`lav2.claims.verdict`, before any run.
"""
