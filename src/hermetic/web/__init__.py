"""The HTTP edge: Quart on trio, served by hypercorn. Decides nothing about turns."""
