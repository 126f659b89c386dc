"""The real node's main program with a stub localizer: stub_node.py [DELAY] --ros-args ..."""

import sys

from ros import stub_localizer

from d2s_ros.ros import localizer_node

if __name__ == '__main__':
    delay = float(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1][0].isdigit() else 0.0
    sys.exit(localizer_node.main(localizer_factory=stub_localizer.factory(delay)))
