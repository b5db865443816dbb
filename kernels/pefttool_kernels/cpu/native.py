def missing():
    return "not built"
