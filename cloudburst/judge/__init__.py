"""The judge of sessions: what clients saw, written down line by line, and whether any database of a level could show
it.

The one rule: nothing here imports the store or the runtime, so that a wrong rule of the protocol cannot hide here. In
this order: `history` is the format, `reading` and `writing` its two ends; `facts` says which transaction read what from
whom; `order` and `past` are what must come before what; `levels` decides, `coverage` for sets and siblings; `counting`
counts as papers do; `explaining` says it in words; `verdict` is all of it, `command` the program. docs/histories.md
says what is decided and what cannot be; sources are Biswas & Enea (OOPSLA 2019), Cerone, Bernardi & Gotsman (CONCUR
2015), Bailis et al. (HAT, VLDB 2013; RAMP, SIGMOD 2014).
"""
