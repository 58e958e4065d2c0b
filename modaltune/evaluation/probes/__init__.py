"""Logistic and Cox regression on embeddings that stay at their sites: exact, by Newton steps on sums over cases."""
