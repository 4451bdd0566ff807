"""Who is asking: bearer tokens and client certificates, each turned into one `security.principal.Principal`."""
