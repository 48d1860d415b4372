"""What people read: the leaderboard beside the paper's numbers, figures, and one static HTML page."""
