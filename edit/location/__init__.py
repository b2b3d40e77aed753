"""What localisation tells about where to edit."""
