"""The proof on a GPU, by one command: ``python -m fusedtrain.gpu_check --out DIR``.

It builds the library for the card that is there, runs the tests on it, runs some of them under compute-sanitizer, and
measures. Each of these slices is a list of steps, every step a process of its own, so that none stops another; one that
hangs is ended when its own time is over. Steps that time nothing run side by side, as many as there are cores for. What
they find is in ``DIR/SLICE.json`` as soon as it is found; a table comes last, also where an interrupt or SIGTERM ends
it all. One call takes nine minutes at most, of all slices together; the next, with ``--resume`` and the same DIR, does
what is left. It needs nothing but the standard library, torch, and what the steps themselves need; what is missing is
said.
"""
