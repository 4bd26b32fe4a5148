"""Tags and limits that encoder and decoder share; aiomultiprocess/_pure/codec.py explains them."""

cdef enum:
    NONE = 0
    FALSE = 1
    TRUE = 2
    INT8 = 3
    INT16 = 4
    INT32 = 5
    INT64 = 6
    BIGINT = 7
    FLOAT = 8
    STR = 9
    BYTES = 10
    TUPLE = 11
    LIST = 12
    SET = 13
    FROZENSET = 14
    DICT = 15
    KEY = 16
    PICKLE = 17
    INT8S = 18
    INT16S = 19
    INT32S = 20
    INT64S = 21
    FLOATS = 22
    REFERENCE = 23

    LONG_SIZE = 255
    MAX_DEPTH = 32
    SHARED_MIN = 4096
    RUN_MIN = 4
    KEY_COUNT = 256
    KEY_SIZE = 64
    SEGMENT_MIN = 65536
