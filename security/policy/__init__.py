"""What a principal may do: roles and rules, decisions over them, and quotas."""
