"""Tile programs as C: rendered for one instruction set, compiled, called like functions."""

from shoestring.kernels.tile.c.choice import ISAS, choose_isa
from shoestring.kernels.tile.c.compiled import CompiledProgram, compile_program
from shoestring.kernels.tile.c.renderer import render

__all__ = ["ISAS", "CompiledProgram", "choose_isa", "compile_program", "render"]
