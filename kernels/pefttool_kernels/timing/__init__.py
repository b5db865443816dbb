"""How long the kernels take: `pefttool kernels bench` and `pefttool kernels tune`."""
