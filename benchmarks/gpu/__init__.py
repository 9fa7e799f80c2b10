"""What is run on a machine with a GPU: README.md tells in which order.

Importing this makes `import vitcx` mean the checkout that it lies in, installed or not.
"""

from benchmarks.gpu.checkout import use_checkout

use_checkout()
