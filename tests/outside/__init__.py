"""What programs around mapsave see of it: installed, scraped, in a browser."""
