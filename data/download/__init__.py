"""Downloads: resumed, checked, unpacked safely; see scripts/data_download.sh.

sources.conf says what there is; sources.py and books.py read it into items,
get.py brings one item to its place, by fetch.py, unpack.py and state.py.
"""
