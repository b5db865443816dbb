"""The kernels against their definition, on the machine at hand: `pefttool kernels`."""
