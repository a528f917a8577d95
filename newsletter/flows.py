"""What spans the apps: periodic tasks and the hand-over of facts from one app to another."""
