import sys

from synq_fast.cli import main

sys.exit(main())
