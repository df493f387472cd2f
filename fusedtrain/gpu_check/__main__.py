import signal

from fusedtrain.gpu_check.cli import main

if __name__ == "__main__":
    # A shell starts what it puts in the background with interrupts ignored, and so would the steps, which an interrupt
    # asks to end with a report. Whoever ends us politely has the table too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    raise SystemExit(main())
