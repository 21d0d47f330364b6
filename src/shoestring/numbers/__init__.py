"""How a value is stored: formats, rounding, scaling, grouping, bit packing."""
