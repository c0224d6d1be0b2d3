"""Objects as files on an NFS server, through a mount of this host."""
