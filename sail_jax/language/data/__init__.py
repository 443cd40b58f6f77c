"""From files of any form to examples of token ids."""
