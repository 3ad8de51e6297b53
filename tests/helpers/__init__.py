"""What several tests share: small runs, a Hub on this machine, naive references, tolerances from arithmetic."""
