"""Adapters: small modules around parts of a frozen model that learn in its place, behind one interface.

    config.py      the section [adapter], in kinds
    places.py      what stands in the place of a module, and finds its way there
    dropout.py     dropout inside an adapter
    lora.py  dora.py  adalora.py  bottleneck.py  prefix.py  ia3.py  bitfit.py      a kind each
    attach.py      attach, set_active, merge, unmerge, detach
    files.py       save, load
    peft/          the same in the format of the PEFT library

Read next: `config.py`.
"""
