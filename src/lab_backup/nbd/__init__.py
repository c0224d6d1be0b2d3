"""The NBD protocol: our client, and the qemu-nbd processes that it talks to."""
