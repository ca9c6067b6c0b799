"""The phases of a step: rollouts or datasets, scoring, learning, publishing. Each knows its gangs and no other phase."""
