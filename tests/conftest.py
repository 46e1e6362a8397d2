"""What all tests rely on, in this process and in those that they start."""

import os
import signal

os.environ["COLUMNS"] = "160"  # tables and sentences wrap alike, whatever the terminal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and hand that on
