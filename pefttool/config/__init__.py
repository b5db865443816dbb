"""What the user asked for and what is installed: recipes, their options, plugins and what they register."""
