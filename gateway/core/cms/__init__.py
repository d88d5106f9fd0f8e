"""S/MIME (RFC 8551) and its Cryptographic Message Syntax (RFC 5652), streamed: content goes from file to file.

No library for Python streams CMS, so the syntax is read and written here; every primitive, every certificate and every
path is left to ``cryptography`` and ``pyhanko-certvalidator``. From the inside out: ``ber`` the encoding,
``algorithms`` what we allow, ``signed``, ``enveloped`` and ``compressed`` the content types, ``trust`` whose signature
counts.
"""
