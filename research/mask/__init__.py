"""Train and judge the learnt mask: synthetic sounds and noises, recorded ones to report on."""
