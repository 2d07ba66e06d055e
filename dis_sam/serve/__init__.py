"""The local page and its JSON API (``dis-sam serve``). It needs the extra ``serve``."""
