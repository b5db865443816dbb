"""stub"""

pefttool_api_version = 1
