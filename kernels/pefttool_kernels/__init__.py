"""Matrix products with frozen weights of 4 and 8 bits, stored by bitsandbytes and read in place.

Imports torch, and, only when they are used, triton and bitsandbytes; never pefttool.
"""
