"""The recipe of the starter weights: programs, run with ``python -m recipes.starter.NAME``."""

from IS_Net.command_line import answer_interrupts

answer_interrupts()  # before a program imports PyTorch
