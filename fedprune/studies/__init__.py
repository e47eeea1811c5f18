"""What several experiments share: settings of the papers, their claims, and tables.

An experiment is one file in ``experiments/``, which imports this package and no other experiment.
What two of them need stands here, a file for each subject:

  bearing   the federation of bearings
  hfl       P2's federation
  latency   settings that fit the papers' tables of latency
  ota       P0's numbers, and the rules by which its claims are judged
  personal  tables of clients with models of their own

AirNet, of which seven experiments are made, has a room of its own: ``fedprune.airnet``.
"""
