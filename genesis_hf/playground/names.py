"""Names of models on the Hub."""

import re

HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
"""owner/name@revision"""
