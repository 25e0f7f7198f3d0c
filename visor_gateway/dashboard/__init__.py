"""The live page: plain HTML, CSS and JavaScript, served as it is by `routes.dashboard`. No build step."""
