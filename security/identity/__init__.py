"""Who is asking: tokens, users with passwords and client certificates, each turned into one `security.principal.Principal`."""
