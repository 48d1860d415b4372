"""A policy, a task and roles give an evaluation report; reports give a leaderboard and a page."""
